"""The page of `vit-scratch demo` as a Space. Beside this file lies the source of the package, hf_vit_scratch/."""

from hf_vit_scratch.demo.server import serve

MODELS = ["$models"]

# Gradio takes address and port from the variables that a Space sets.
serve(MODELS)
