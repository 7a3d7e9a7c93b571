"""Train a Vision Transformer from scratch: `accelerate launch train.py`, and `python train.py --help` for the flags."""

from hf_vit_scratch.training import main

if __name__ == "__main__":
    main()
