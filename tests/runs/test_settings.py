"""Whether a resumed run is the same run: the resizer of the pictures is one of its settings."""

import pytest

from sd.errors import InputError
from sd.runs.settings import check_same_run, checkpoint_settings

NOW = {"resolution": 256, "resizer": "cykooz-resizer 4"}


def test_a_run_of_another_resizer_resumes_only_with_allow_changed_resume(tmp_path):
    (tmp_path / "settings.json").write_text('{"resolution": 256}')  # from before the resizer had a name
    for before in (checkpoint_settings(tmp_path), NOW | {"resizer": "cykooz-resizer 3"}):
        with pytest.raises(InputError, match=r"\(resizer: .* -> 'cykooz-resizer 4'.*3 of 255.*--allow_changed_resume"):
            check_same_run(before, NOW, "checkpoint-2", allow_changed=False)
        assert "3 of 255" in check_same_run(before, NOW, "checkpoint-2", allow_changed=True)
    assert check_same_run(NOW, NOW, "checkpoint-2", allow_changed=False) == ""


def test_the_resizer_does_not_matter_to_training_from_a_cache(tmp_path):
    (tmp_path / "settings.json").write_text('{"resolution": 256}')
    assert check_same_run(checkpoint_settings(tmp_path), {"resolution": 256}, "checkpoint-2", allow_changed=False) == ""
