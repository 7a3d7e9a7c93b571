"""`accelerate launch -m hf_vit_scratch` is `train.py`, for an install without a clone."""

from .training import main

if __name__ == "__main__":
    main()
