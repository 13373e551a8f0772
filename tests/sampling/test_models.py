"""Loading a pipeline's models: what is said of the checkpoint that they come from."""

import pytest

from sd.sampling.models import load_models
from tests.checkpoints import make_output_dir
from tests.tiny import make_tiny_repository


@pytest.mark.parametrize(("variant", "says"), [(None, ["does not have the checksum that was written"]), ("ema", [])])
def test_a_named_checkpoint_that_is_damaged_is_used_with_a_warning(tmp_path, caplog, variant, says):
    copy = make_output_dir(make_tiny_repository(tmp_path / "tiny"), tmp_path / "output") / "checkpoint-10"
    weights = bytearray((copy / "unet/diffusion_paddle_model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "unet/diffusion_paddle_model.safetensors").write_bytes(weights)
    load_models(str(copy), variant=variant)
    warnings_given = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings_given) == len(says) and all(map(str.__contains__, warnings_given, says))
