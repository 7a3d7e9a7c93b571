"""The files of a Space that serves the page: app, requirements and card, and the source of the package."""

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from huggingface_hub.utils import validate_repo_id

from ..hub.model_folder import check_model
from ..hub.repository import Repository

_PACKAGE = Path(__file__).parents[1]
_CARRIED = (".py", ".html", ".css", ".js", ".yaml")
# In a wheel the templates are inside the package, in a clone they are in model_cards/.
_TEMPLATES = (resources.files("hf_vit_scratch.demo") / "space_files", _PACKAGE.parent / "model_cards" / "space")


def space_files(models: Sequence[str]) -> dict[str, Path | bytes]:
    """The files of a Space by their names in it.

    Args:
        models: ids of repositories on the Hub.

    Raises:
        ValueError: one of the models is not the id of a repository.
    """
    for model in models:
        if Path(model).exists() or model.count("/") != 1:
            raise ValueError(
                f"a Space loads its models from the Hub, so --model must be USER/NAME, got {model}. "
                "Push a folder first: vit-scratch push DIR USER/NAME"
            )
        validate_repo_id(model)
    templates = next(folder for folder in _TEMPLATES if folder.is_dir())
    files: dict[str, Path | bytes] = {}
    for name, between in (("app.py", '", "'), ("README.md", "\n- "), ("requirements.txt", "")):
        text = (templates / name).read_text(encoding="utf-8")
        files[name] = text.replace("$models", between.join(models)).encode()
    for path in sorted(_PACKAGE.rglob("*")):
        if path.suffix in _CARRIED and not path.is_relative_to(_PACKAGE / "demo" / "space_files"):
            files[path.relative_to(_PACKAGE.parent).as_posix()] = path
    return files


def push_space(repository: Repository, models: Sequence[str], command: str) -> str:
    """Create or update a Space. Returns the URL of the commit.

    Args:
        repository: of the kind "space".
        models: ids of repositories on the Hub. They are checked as by every command that loads a model.
        command: the command that pushes the Space again, for error messages.

    Raises:
        ValueError: in one line, if a model is not on the Hub or cannot be loaded.
        OSError: in one line, for any failure of the push.
    """
    files = space_files(models)
    for model in models:
        try:
            check_model(model, has_head=True)
        except (ValueError, OSError) as error:
            raise ValueError(f"cannot load a model from {model}: {error}") from error
    return repository.upload_files(files, ("hf_vit_scratch/*",), command)
