"""`vit-scratch explain`: the plots of a model and of what it does with images, and the page that shows them."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from tqdm.auto import tqdm

from ..data.batches import PixelValues
from ..data.names import counted
from ..device import best_device, describe
from ..evaluation.metrics import binomial_interval, evaluate_logits, reliability
from ..evaluation.prediction import Classifier, class_scores, load_model
from ..output_folder import MANIFEST_NAME, move_into_place, read_json, real_path
from .attention import (
    attention_distance,
    attention_rollout,
    output_map,
    patch_distances,
    record_attentions,
    rollout_map,
)
from .gradients import gradient_map, has_captum, parts_from_the_top, randomization_check
from .images import SPLITS, ImageSource, Pictures, read_pictures
from .page import PAGE_NAME, Card, Section, write_page
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
from .predictions import confused_pairs, predict, project

_CHECKED = 8  # images of the randomization check
_LEAST_EMBEDDED = 10
_EXAMPLES = 6  # of each confused pair
_MAX_ATTENTION_BYTES = 2**29  # of the attention weights that are in memory at a time
INSTALL = 'pip install "hf-vit-scratch[explain]"'


@dataclass(frozen=True)
class Subject:
    """What is explained: a model, its images, and what it predicts for them.

    Args:
        name: public name of the model.
        classifier: the model and its processor.
        pictures: the images.
        logits: `(num_images, num_labels)`.
        features: `(num_images, hidden_size)`.
        shown: number of images with maps, the first of `pictures`.
    """

    name: str
    classifier: Classifier
    pictures: Pictures
    logits: torch.Tensor
    features: np.ndarray
    shown: int

    @property
    def classes(self) -> list[str]:
        """Names of the outputs of the model."""
        config = self.classifier.model.config
        return [config.id2label[index] for index in range(config.num_labels)]

    @property
    def chooses(self) -> bool:
        """Whether the model chooses one of several classes."""
        config = self.classifier.model.config
        other = config.problem_type in ("regression", "multi_label_classification")
        return config.num_labels > 1 and not other

    @property
    def labels(self) -> np.ndarray | None:
        """The classes of the images, `(num_images,)`, if they are known and are those of the model."""
        known = self.pictures.labels is not None and self.pictures.classes == self.classes
        return self.pictures.labels if known and self.chooses else None

    @property
    def why_no_labels(self) -> str:
        """A sentence that says why there are no mistakes to show."""
        if not self.chooses:
            return "The model does not choose one of several classes, so this part is left out."
        if self.pictures.labels is None:
            return "The images have no labels, so this part is left out."
        return "The labels of the data are not the classes of the model, so this part is left out."

    @property
    def predicted(self) -> np.ndarray:
        """The output with the highest logit of each image, `(num_images,)`."""
        return self.logits.argmax(dim=-1).numpy()

    @property
    def confidence(self) -> np.ndarray:
        """The score of the predicted output of each image, `(num_images,)`."""
        return class_scores(self.logits.double(), self.classifier.model.config).max(dim=-1).values.numpy()

    @property
    def black(self) -> torch.Tensor:
        """A black image, normalized, `(num_channels, height, width)`."""
        config = self.classifier.model.config
        return PixelValues(self.classifier.processor)(torch.zeros(config.num_channels, *config.image_height_width))

    def images(self, indices: list[int]) -> np.ndarray:
        """Images as the model takes them, uint8, `(len(indices), height, width, channels)`."""
        return self.pictures.pixels(indices).permute(0, 2, 3, 1).numpy()


def explain(
    model: str,
    source: ImageSource,
    output_dir: str | os.PathLike,
    number: int = 50,
    embedding_images: int = 2000,
) -> str:
    """Explain a model: write one HTML page, which opens without a network, and each of its plots as PNG.

    Args:
        model: output folder of a run, or id of a repository on the Hub. Code in it is not run.
        source: the images.
        output_dir: a new or empty folder, or that of an earlier explanation, which is replaced. If anything fails, it
            remains as it was.
        number: images of a data set with attention maps. Of files, all have them.
        embedding_images: images of a data set that are predicted, for the embedding, the mistakes and the calibration.

    Returns:
        A line for the user: the page, and the number of plots.

    Raises:
        ValueError: in one line, if there is no such model, no images, one cannot be read, or the folder holds
            something else.
    """
    output = real_path(output_dir)
    _check_source(source)
    for name, value in (("--number", number), ("--embedding_images", embedding_images)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
    _check_output(output)
    subject = _predict(model, source, number, embedding_images)
    output.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent, ignore_cleanup_errors=True) as temporary:
        folder = Path(temporary) / output.name
        folder.mkdir()
        parts = [_maps, _distances, _filters, _positions, _embedding, _pairs, _calibration, _randomization]
        sections = [part(subject, folder) for part in tqdm(parts, desc="Explaining")]
        origin, warning = subject.pictures.origin, subject.pictures.seen
        write_page(folder, sections, model=subject.name, facts=_facts(subject), origin=origin, warning=warning)
        move_into_place(folder, output)
    shown, plots = counted(range(subject.shown), "image"), counted(list(output.glob("*.png")), "plot")
    return f"{Path(output_dir) / PAGE_NAME} shows {shown}. Its {plots} are PNG files beside it."


def _check_source(source: ImageSource) -> None:
    if bool(source.files) == bool(source.data):
        raise ValueError("expected images: give either --images FILE ... or --data SOURCE.")
    if source.files and (source.split or source.image_column or source.label_column):
        raise ValueError("--split, --image_column and --label_column go with --data, not with --images.")
    if source.split not in (None, *SPLITS):
        raise ValueError(f"--split must be one of {', '.join(SPLITS)}, got {source.split}.")


def _check_output(output: Path) -> None:
    """Raises: ValueError if the folder holds anything but an earlier explanation."""
    if not output.exists():
        return
    if not output.is_dir():
        raise ValueError(f"--output_dir {output}: expected a folder, got a file.")
    found = {path.name for path in output.iterdir()}
    if found:
        try:
            known = {PAGE_NAME, MANIFEST_NAME} <= found <= {MANIFEST_NAME, *read_json(output / MANIFEST_NAME)["files"]}
        except (OSError, ValueError, KeyError, TypeError):
            known = False
        if not known:
            expected = "expected a new or empty folder, or that of an earlier explanation"
            raise ValueError(f"--output_dir {output}: {expected}, got one with other files. Choose another one.")


def _predict(model: str, source: ImageSource, number: int, embedding_images: int) -> Subject:
    classifier = load_model(model)
    pictures = read_pictures(model, classifier, source, max(number, embedding_images))
    to_pixel_values = PixelValues(classifier.processor).to(classifier.model.device)
    tokens = classifier.model.config.num_tokens
    size = 500 if tokens <= 64 else 50 if tokens <= 256 else 8
    batches = pictures.batches(to_pixel_values, size)
    shown = tqdm(batches, desc="Predicting", total=-(-len(pictures.names) // size))
    logits, features = predict(classifier.model, shown)
    if not torch.isfinite(logits).all():
        raise ValueError(f"{model} computes logits that are not finite numbers, which cannot be explained.")
    name = real_path(model).name if real_path(model).exists() else model
    count = len(pictures.names) if source.files else min(number, len(pictures.names))
    return Subject(name, classifier, pictures, logits, features, count)


def _facts(subject: Subject) -> dict[str, str]:
    config = subject.classifier.model.config
    height, width = config.image_height_width
    rows, columns = config.grid_size
    parameters = sum(parameter.numel() for parameter in subject.classifier.model.parameters())
    facts = {
        "Model": f"{subject.name}: {parameters:,} parameters, {config.num_hidden_layers} layers of "
        f"{config.num_attention_heads} heads, width {config.hidden_size}",
        "Image": f"{height}x{width} pixels, {counted(range(config.num_channels), 'channel')}, "
        f"{rows}x{columns} patches of {config.patch_size}x{config.patch_size}",
        "Output": "the class token" if config.pooling == "cls" else "the mean of the patch tokens",
    }
    if subject.labels is not None:
        wrong, count = int((subject.labels != subject.predicted).sum()), len(subject.labels)
        low, high = binomial_interval(wrong, count)
        facts["Mistakes"] = f"{wrong:,} of {count:,} images, {wrong / count:.2%} "
        facts["Mistakes"] += f"(95% interval {low:.2%} to {high:.2%})"
    return facts | {"Device": describe(best_device())}


# ---- the parts of the page: each writes its plots into the folder, and says how to read them


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
