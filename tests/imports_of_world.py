"""Exit with an error if drawing a portrait imports more than NumPy, for test_portraits.py."""

import sys

from evoid_jax.world import portraits

if __name__ == "__main__":
    portraits.prompt(portraits.scene(0, 0))
    portraits.render(portraits.scene(0, 0))
    more = {"jax", "flax", "torch", "tensorflow", "PIL", "scipy"} & sys.modules.keys()
    assert not more, more
