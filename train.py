"""Train a Vision Transformer from scratch: `accelerate launch train.py`; `--help` lists the flags."""

from hf_vit_scratch.console import leave_on_signals

if __name__ == "__main__":
    leave_on_signals("train.py")
    from hf_vit_scratch.training import main

    main()
