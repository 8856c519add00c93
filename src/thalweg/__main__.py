"""`python -m thalweg`, and `torchrun -m thalweg`, are the command `thalweg`."""

from thalweg.cli.main import main

if __name__ == "__main__":
    main()
