#!/usr/bin/env bash
# Build the images of docker/Dockerfile without a container engine, then run a small journey inside the CPU one.
#
#   docker/build_images.sh [server] [cpu] [gpu]        by default all three; the gpu image holds several GB of CUDA
#
# buildah and debootstrap are Debian's packages; it needs root. The base image is a Debian made by debootstrap with its
# own python3.11 (instead of python:3.11-slim-bookworm, which needs a registry of images). This machine's pip settings
# hold during the build and are no part of the images. TORCH_INDEX replaces the index of CPU torch.
set -euo pipefail
cd "$(dirname "$0")/.."
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(server cpu gpu)
[ "$(id -u)" = 0 ] || { echo "needs root: debootstrap makes device files" >&2; exit 2; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export BUILDAH_ISOLATION=chroot

# The gpu image takes no wheels from PIP_FIND_LINKS: a CPU torch there is preferred to the CUDA build of the index.
settings() { # the pip.conf of a target, and its mounts
    local setting name folder
    {
        echo "[global]"
        for setting in index_url extra_index_url find_links cert; do
            name=PIP_${setting^^}
            [ "$1 $setting" != "gpu find_links" ] || continue
            [ -z "${!name:-}" ] || echo "${setting//_/-} = ${!name}"
        done
    } > "$work/pip.conf"
    mounts=(--volume "$work/pip.conf:/etc/pip.conf:ro")
    for folder in ${PIP_FIND_LINKS:-} ${PIP_CERT:-}; do
        [ ! -e "$folder" ] || mounts+=(--volume "$folder:$folder:ro")
    done
}

if ! buildah inspect --type image hyco-base > /dev/null 2>&1; then
    echo "[base] Debian bookworm with python3.11"
    debootstrap --variant=minbase bookworm "$work/root" http://deb.debian.org/debian > "$work/log" \
        || { tail "$work/log"; exit 1; }
    cp /etc/resolv.conf "$work/root/etc/"
    chroot "$work/root" sh -c "apt-get -q update && apt-get -q install -y --no-install-recommends \
        ca-certificates python3.11-venv && python3.11 -m venv /usr/local/python" > "$work/log" 2>&1 \
        || { tail "$work/log"; exit 1; }
    rm -rf "$work"/root/var/cache/apt/* "$work"/root/var/lib/apt/lists/*
    container=$(buildah from scratch)
    buildah add -q "$container" "$work/root" / > /dev/null
    buildah config --env PATH=/usr/local/python/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
        --env LANG=C.UTF-8 "$container"
    buildah commit -q --rm "$container" hyco-base > /dev/null
fi

for target in "${targets[@]}"; do
    echo "[$target] building hyco-$target"
    start=$SECONDS
    settings "$target"
    buildah bud -q --format docker --layers --from localhost/hyco-base "${mounts[@]}" ${TORCH_INDEX:+--build-arg "TORCH_INDEX=$TORCH_INDEX"} \
        -f docker/Dockerfile --target "$target" -t "hyco-$target" . > /dev/null
    size=$(buildah images --format '{{.Size}}' "localhost/hyco-$target")
    echo "[$target] $size in $((SECONDS - start)) s"
    if [ "$target" = gpu ]; then
        container=$(buildah from localhost/hyco-gpu)
        cuda=yes
        buildah run "$container" -- python -c 'import torch, torchvision; assert torch.version.cuda' || cuda=no
        buildah rm "$container" > /dev/null
        [ "$cuda" = yes ] || { echo "[gpu] its torch has no CUDA: buildah rmi hyco-gpu, and build it again" >&2; exit 1; }
    fi
done

if [[ " ${targets[*]} " = *" cpu "* ]]; then
    echo "[cpu] a small journey, as the image's user"
    .venv/bin/python -m hyco.demo scenes --out "$work/scenes" --train 60 --heldout 40
    chmod -R a+rX "$work"
    container=$(buildah from localhost/hyco-cpu)
    trap 'buildah rm "$container" > /dev/null; rm -rf "$work"' EXIT
    buildah run --volume "$work/scenes:/sources:ro" "$container" -- sh -c '
        set -e
        test "$(id -u)" = 10001
        hyco journey --home /data/home --recipe demo --source /sources/train --assess-source /sources/heldout \
            --taxonomy /sources/taxonomy.json --grounder transformers:/app/demo/weights/grounder \
            --set recipe.steps=2 --set recipe.optimiser.warmup_steps=1 --set recipe.batch_size=8 \
            --set recipe.entailment_start=0 --set recipe.entailment_ramp=1
        hyco status --home /data/home'
fi
