"""`accelerate launch -m hf_vit_scratch` is `train.py`, for an install without a clone."""

from .console import leave_on_signals

if __name__ == "__main__":
    leave_on_signals("train.py")
    from .training import main

    main()
