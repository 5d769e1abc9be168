#!/usr/bin/env bash
# Package: onnxruntime 1.32.0 (CPU), onnx 1.23.2
#
# ONNX defines sinh, cosh, asinh, acosh, atanh, asin, acos, atan, erf and softplus for float64, and the checker of onnx
# accepts such graphs. ONNX Runtime's CPU provider has these functions in float32 only (exp, log, sqrt, sin, cos and
# tanh in both): the session is refused with NOT_IMPLEMENTED.
#
# Who it hurts: hyperbolic nets, whose maps, distances and layers are made of these functions and which are often kept
# in float64 because float32 loses points far from the origin. Such a net exports and passes the checker, and then
# loads in no session.
# Instead: export in float32 with functions that are safe there, or write them with exp, log and sqrt.
#
# Seen:
#   float32: all load
#   float64: acos acosh asin asinh atan atanh cosh erf sinh softplus refused
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check --no-compile onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6

"$work/venv/bin/python" - <<'PY'
import onnx
import onnxruntime
from onnx import TensorProto, helper

FUNCTIONS = "Acos Acosh Asin Asinh Atan Atanh Cos Cosh Erf Exp Log Sin Sinh Softplus Sqrt Tanh".split()


def refused(function, kind):
    ends = [helper.make_tensor_value_info(name, kind, [2]) for name in "xy"]
    graph = helper.make_graph([helper.make_node(function, ["x"], ["y"])], "one", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    try:
        onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    except Exception as error:
        assert "NOT_IMPLEMENTED" in str(error), error
        return True
    return False


single = [name.lower() for name in FUNCTIONS if refused(name, TensorProto.FLOAT)]
double = [name.lower() for name in FUNCTIONS if refused(name, TensorProto.DOUBLE)]
print("float32:", *(single + ["refused"] if single else ["all load"]))
print("float64:", *double, "refused")
assert not single
assert double == "acos acosh asin asinh atan atanh cosh erf sinh softplus".split()
PY
