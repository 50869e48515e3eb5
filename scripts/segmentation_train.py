"""Run `medsegdiff train` under the original's name."""

import _checkout

if __name__ == "__main__":
    _checkout.run("train")
