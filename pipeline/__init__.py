"""What happens: mining, packing, training and assessment as plain functions."""
