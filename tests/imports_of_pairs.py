"""Exit with an error if reading portraits imports TensorFlow or torch, for test_pairs.py.

python imports_of_pairs.py CACHE_DIR
"""

import sys

from evoid_jax.data.pairs import batch, open_splits

if __name__ == "__main__":
    (cache_dir,) = sys.argv[1:]
    assert "tensorflow_datasets" not in sys.modules
    batch(open_splits("portraits", cache_dir=cache_dir).evolution, 0, 4)
    assert "tensorflow_datasets" in sys.modules
    assert not {"tensorflow", "torch"} & sys.modules.keys()
