"""The parts of the page: each writes its plots into the folder of the page, and says how to read them."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch

from ..data.batches import PixelValues
from ..data.names import counted
from ..evaluation.metrics import binomial_interval, evaluate_logits, reliability
from .attention import (
    attention_distance,
    attention_rollout,
    output_map,
    patch_distances,
    record_attentions,
    rollout_map,
)
from .gradients import INSTALL, gradient_map, has_captum, parts_from_the_top, randomization_check
from .page import Card, Section
from .parameters import has_position_similarity, patch_filters, position_similarity
from .plots import (
    plain,
    plot_attention_distance,
    plot_confused_pairs,
    plot_embedding,
    plot_filters,
    plot_heads,
    plot_maps,
    plot_position_similarity,
    plot_randomization,
    plot_reliability,
)
from .predictions import confused_pairs, project
from .subject import Subject

_CHECKED = 8  # images of the randomization check
_LEAST_EMBEDDED = 10
_EXAMPLES = 6  # of each confused pair
_MAX_ATTENTION_BYTES = 2**29  # of the attention weights that are in memory at a time


def _attention_batches(subject: Subject) -> Iterator[tuple[list[int], torch.Tensor]]:
    """The shown images, in batches whose attention weights fit into memory: indices and normalized pixels."""
    config = subject.classifier.model.config
    each = 4 * config.num_hidden_layers * config.num_attention_heads * config.num_tokens**2
    size = max(1, min(32, _MAX_ATTENTION_BYTES // each))
    for start in range(0, subject.shown, size):
        indices = list(range(start, min(start + size, subject.shown)))
        yield indices, _pixel_values(subject, indices)


def _pixel_values(subject: Subject, indices: list[int]) -> torch.Tensor:
    to_pixel_values = PixelValues(subject.classifier.processor).to(subject.classifier.model.device)
    return to_pixel_values(subject.pictures.pixels(indices).to(subject.classifier.model.device))


def _maps(subject: Subject, folder: Path) -> Section:
    model, config, cards = subject.classifier.model, subject.classifier.model.config, []
    for indices, pixel_values in _attention_batches(subject):
        attentions = record_attentions(model, pixel_values)
        depths = range(1, len(attentions) + 1)
        rollouts = np.stack([output_map(attention_rollout(attentions[:n]), config) for n in depths], axis=1)
        heads = np.stack([output_map(weights, config) for weights in attentions], axis=1)
        targets = torch.from_numpy(subject.predicted[indices])
        gradients = gradient_map(model, pixel_values, targets, subject.black) if has_captum() else None
        for place, (index, image) in enumerate(zip(indices, subject.images(indices), strict=True)):
            maps = {"attention rollout": rollouts[place, -1]}
            if gradients is not None:
                maps["gradients"] = gradients[place]
            files = [f"image_{index + 1:03}_{kind}.png" for kind in ("maps", "heads")]
            plot_maps(image, maps, folder / files[0])
            plot_heads(image, heads[place], rollouts[place], folder / files[1])
            cards.append(Card(subject.pictures.names[index], *_caption(subject, index), *files))
    start = "the class token" if config.pooling == "cls" else "the mean of all tokens, which is the output here,"
    texts = [
        f"Attention rollout says how much of {start} comes from each patch, through all layers: yellow is most, dark "
        "blue least. Each map is scaled to its own maximum. It shows where the model collects from, not which class "
        "this speaks for.",
        "Layers and heads: each row is a layer, the first at the top. The columns are what the output attends to in "
        "each head, the mean of the heads, and the rollout up to this layer.",
    ]
    source = "Abnar and Zuidema 2020 (arXiv 2005.00928), section 3; the ViT paper (arXiv 2010.11929), figure 6 and "
    source += "appendix D.8."
    if has_captum():
        texts.insert(
            1,
            "The map by gradients says which patches raise the logit of the predicted class, compared with a black "
            "image. Patches that are black add nothing, and those that lower the logit are left dark.",
        )
        source += " Gradients: integrated gradients, Sundararajan et al. 2017 (arXiv 1703.01365)."
    left_out = [] if has_captum() else [f"The map by gradients needs Captum, which is not installed: {INSTALL}"]
    return Section("attention", "Attention over each image", texts, source, cards=cards, left_out=left_out)


def _caption(subject: Subject, index: int) -> tuple[str, bool]:
    """A line about an image, and whether it is a mistake."""
    predicted, labels = subject.classes[subject.predicted[index]], subject.labels
    verb = "predicted" if subject.chooses else "highest output"
    line = f"{subject.pictures.names[index]}: {verb} {predicted} ({subject.confidence[index]:.3f})"
    if labels is None:
        return line, False
    wrong = bool(labels[index] != subject.predicted[index])
    return line + (f", but the label is {subject.classes[labels[index]]}" if wrong else ", as labelled"), wrong


def _distances(subject: Subject, folder: Path) -> Section:
    model, config, title = subject.classifier.model, subject.classifier.model.config, "Mean attention distance"
    if config.grid_size == (1, 1):
        return Section("distance", title, [], left_out=["The image is one patch. This part is left out."])
    each = [attention_distance(record_attentions(model, batch), config) for _, batch in _attention_batches(subject)]
    plot = "attention_distance.png"
    plot_attention_distance(np.concatenate(each).mean(axis=0), float(patch_distances(config).mean()), folder / plot)
    texts = [
        "Each point is a head: the mean distance, in pixels of the image, between a patch and the patches that it "
        f"attends to, over {counted(range(subject.shown), 'image')}. A low point is a local head, which looks at "
        "neighbours as a convolution does; at the dashed line a head would look at all patches alike.",
    ]
    source = "The ViT paper (arXiv 2010.11929), figure 7 (right) and appendix D.7."
    return Section("distance", title, texts, source, plot)


def _filters(subject: Subject, folder: Path) -> Section:
    config, plot = subject.classifier.model.config, "filters.png"
    filters = patch_filters(subject.classifier.model)
    plot_filters(filters, folder / plot)
    if config.stem == "patch":
        texts = [
            f"The first {len(filters)} principal components of the {config.hidden_size} filters of the patch "
            "embedding: the patterns in which the model describes a patch, the most important first."
        ]
    else:
        texts = [
            "The stem is a small CNN, so there is no linear filter of a whole patch. These are the kernels of its "
            f"first convolution, 3x3 pixels each, the first {len(filters)} of them."
        ]
    texts.append("Grey is 0; each filter is scaled to its largest weight.")
    if config.num_channels not in (1, 3):
        texts.append(f"The mean of the {config.num_channels} channels is shown.")
    source = "The ViT paper (arXiv 2010.11929), figure 7 (left)."
    return Section("filters", "Filters of the patch embedding", texts, source, plot)


def _positions(subject: Subject, folder: Path) -> Section:
    config, title = subject.classifier.model.config, "Similarity of the position embeddings"
    if not has_position_similarity(config):
        none = config.position_embedding == "none"
        why = "The model has no position embeddings." if none else "The model has more than 4,096 patches."
        return Section("positions", title, [], left_out=[f"{why} This part is left out."])
    plot = "position_similarity.png"
    plot_position_similarity(position_similarity(subject.classifier.model), folder / plot)
    learned = {
        "learned": "The positions were learned: patches that are close, or in one row or column, become similar.",
        "sincos2d": "The positions are fixed sines and cosines, not learned: the pattern is that of their formula.",
    }
    texts = [
        "Each tile belongs to the patch at its place in the image, and shows how similar its position embedding is "
        "to those of all patches.",
        learned[config.position_embedding],
    ]
    source = "The ViT paper (arXiv 2010.11929), figure 7 (centre)."
    return Section("positions", title, texts, source, plot)


def _embedding(subject: Subject, folder: Path) -> Section:
    title, pictures, count = "The images as the model sees them", subject.pictures, len(subject.features)
    if count < _LEAST_EMBEDDED:
        why = f"An embedding needs at least {_LEAST_EMBEDDED} images, and there are {count}: this part is left out."
        return Section("embedding", title, [], left_out=[why])
    groups, names, colour = None, subject.classes, "The outputs are no classes, so all points have one colour."
    if pictures.labels is not None:
        groups, names, colour = pictures.labels, pictures.classes, "The colour is the label."
    elif subject.chooses:
        groups, colour = subject.predicted, "The images have no labels: the colour is the predicted class."
    wrong = None if subject.labels is None else subject.labels != subject.predicted
    plot = "embedding.png"
    plot_embedding(project(subject.features), groups, names, wrong, folder / plot)
    texts = [
        f"Each point is one of {count:,} images: y of equation 4, the {subject.features.shape[1]} numbers that the "
        f"head takes, in two dimensions. {colour}"
        + ("" if wrong is None else " A black ring is a mistake.")
        + (" The 20 most frequent classes have colours, the others are grey." if len(set(names)) > 20 else ""),
        "Neighbours in the plot are similar for the model. Neither the distances between groups nor the sizes of "
        "groups mean anything.",
    ]
    source = "30 principal components, then t-SNE: van der Maaten and Hinton 2008, Visualizing Data using t-SNE, "
    return Section("embedding", title, texts, f"{source}section 3.", plot)


def _pairs(subject: Subject, folder: Path) -> Section:
    title, labels, predicted = "Most confused classes", subject.labels, subject.predicted
    if labels is None:
        return Section("pairs", title, [], left_out=[subject.why_no_labels])
    pairs = confused_pairs(labels, predicted)
    if not len(pairs):
        why = f"None of the {len(labels):,} images is classified wrongly."
        return Section("pairs", title, [], left_out=[why])
    rows = []
    for true, taken_for, count in pairs.tolist():
        indices = np.flatnonzero((labels == true) & (predicted == taken_for))
        surest = indices[np.argsort(-subject.confidence[indices], kind="stable")][:_EXAMPLES]
        text = f"{plain(subject.classes[true], 14)} → {plain(subject.classes[taken_for], 14)}\n"
        rows.append((text + counted(range(count), "image"), list(subject.images(surest.tolist()))))
    plot = "confused_pairs.png"
    plot_confused_pairs(rows, folder / plot)
    texts = [
        "Each row is a class that is taken for another: label → prediction, and how often, with up to "
        f"{_EXAMPLES} examples. Those of which the model is surest come first: their labels may be wrong."
    ]
    source = "These are the largest entries of the confusion matrix off its diagonal."
    return Section("pairs", title, texts, source, plot)


def _calibration(subject: Subject, folder: Path) -> Section:
    title, labels = "Reliability", subject.labels
    if labels is None:
        return Section("reliability", title, [], left_out=[subject.why_no_labels])
    correct = subject.predicted == labels
    bins = reliability(subject.confidence, correct)
    rights = np.rint(bins["accuracy"] * bins["count"]).astype(int)
    pairs = [binomial_interval(*each) if each[1] else (0.0, 0.0) for each in zip(rights, bins["count"], strict=True)]
    bins |= dict(zip(("low", "high"), np.array(pairs).T, strict=True))
    plot = "reliability.png"
    plot_reliability(bins, folder / plot)
    error = evaluate_logits(subject.logits, labels.tolist())["calibration_error"]
    texts = [
        "Images are grouped by the probability that the model gives to its prediction, and each point is how often a "
        "group is right. Above the dashed line the model is less sure than it could be, below it is too sure. A long "
        "bar means few images.",
        f"Expected calibration error: {error:.2%}, over 15 bins of equal width.",
    ]
    return Section("reliability", title, texts, "Guo et al. 2017 (arXiv 1706.04599), section 2 and figure 1.", plot)


def _randomization(subject: Subject, folder: Path) -> Section:
    title, model = "Do the maps depend on what was learned?", subject.classifier.model
    if model.config.grid_size == (1, 1):
        why = "The image is one patch, so its maps cannot change. This part is left out."
        return Section("check", title, [], left_out=[why])
    indices, pixel_values = (each[:_CHECKED] for each in next(_attention_batches(subject)))
    targets = torch.from_numpy(subject.predicted[indices])
    kinds = {"attention rollout": rollout_map}
    if has_captum():
        kinds["gradients"] = partial(gradient_map, targets=targets, baseline=subject.black)
    similarities = {kind: randomization_check(model, pixel_values, kinds[kind]) for kind in kinds}
    plot = "randomization.png"
    plot_randomization(similarities, list(parts_from_the_top(model)), folder / plot)
    finals = ", ".join(f"{kind} {values[-1]:.2f}" for kind, values in similarities.items())
    texts = [
        "The weights are replaced by untrained ones, from the head down to the embeddings, and the maps are computed "
        "again. A map that shows what the model has learned loses its similarity to the map of the trained model; one "
        "that stays near 1 shows the image alone. The head has no part in the rollout, so the first step changes "
        "nothing there.",
        f"With no trained weight left, the rank correlation is {finals}, over {counted(indices, 'image')}.",
    ]
    source = "Adebayo et al. 2018, Sanity checks for saliency maps (arXiv 1810.03292), section 3."
    left_out = [] if has_captum() else [f"The map by gradients needs Captum, which is not installed: {INSTALL}"]
    return Section("check", title, texts, source, plot, left_out=left_out)


# From top to bottom.
SECTIONS = (_maps, _distances, _filters, _positions, _embedding, _pairs, _calibration, _randomization)
