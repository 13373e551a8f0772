"""What makes a run the one that it is, and what a resume compares: settings, hashes of the frozen components."""

from typing import TYPE_CHECKING, Any

from sd.data.streaming.dataset import TextImagePair
from sd.flags.arguments import SDDataArguments, SDModelArguments
from sd.models.hashes import weights_hash
from sd.models.loading import component_source
from sd.runs.settings import result_settings

if TYPE_CHECKING:
    from sd.flags.training import SDTrainingArguments


def component_hashes(model: Any, model_args: SDModelArguments, manifest: Any) -> dict[str, str]:
    """Component that is not trained -> hash of its weights or vocabulary. manifest: of the cache that holds what the
    deferred ones computed, which knows their hashes."""
    hashes = {}
    for component in ("vae", "text_encoder", "tokenizer"):
        if component in model.deferred:
            hashes[component] = getattr(manifest, f"{component}_hash")
        elif component not in model.trained_components:
            source = component_source(model_args, component)
            hashes[component] = weights_hash(component, *source, loaded=getattr(model, component))
    return hashes


def settings_of(
    model_args: SDModelArguments,
    data_args: SDDataArguments,
    training_args: "SDTrainingArguments",
    dataset: TextImagePair,
    hashes: dict[str, str],
) -> dict[str, Any]:
    """The settings that a checkpoint keeps, of a run with these arguments that reads this dataset."""
    settings = result_settings(
        model_args,
        data_args,
        training_args,
        dataset.fingerprint,
        dataset.order.buffer_size,
        hashes,
        dataset.resizer,
        dataset.catalog.data_filter,
    )
    return settings | {name: dataset.state(0).get(name) for name in ("aspect_buckets", "group_size")}
