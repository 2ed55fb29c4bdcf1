"""Load a tokenizer and encode a prompt; fail if that imported torch.

python encoding_without_torch.py FOLDER
"""

import sys

from evoid_jax.models import umt5

if __name__ == "__main__":
    umt5.tokenize(umt5.load_tokenizer(sys.argv[1]), ["hi"])
    assert "torch" not in sys.modules
