"""Train a Vision Transformer from scratch: `accelerate launch train.py`; `--help` lists the flags."""

from hf_vit_scratch.training import main

if __name__ == "__main__":
    main()
