"""torch.export: the fake-quantized network's logits from a program of torch's own operations."""

import pytest
import torch

from common.deploy.graph import ClassLogits
from common.deploy.program import exported_program
from common.errors import UserError
from common.models import build_model
from tests.deploy.conftest import calibrated, images


@pytest.mark.parametrize("method", ["ours", "lsq", "apot", "centroid"])
@torch.no_grad()
def test_logits_are_equal_at_another_batch_size(method: str) -> None:
    model, x = calibrated("MNISTmodel_quant", 4, method), images("MNISTmodel_quant", 5)
    program = exported_program(model, (3, 28, 28))
    assert torch.equal(program.module()(x), ClassLogits(model)(x))
    operations = {str(node.target).split(".")[0] for node in program.graph.nodes if node.op == "call_function"}
    assert operations <= {"aten", "<built-in function getitem>"}


def test_scales_that_were_never_set_are_refused() -> None:
    with pytest.raises(UserError, match="never set"):
        exported_program(build_model("MNISTmodel_quant", method="lsq", bitW=4, abitW=4), (3, 28, 28))
