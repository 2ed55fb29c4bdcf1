"""Harm to files, as disks and interrupted copies do it."""


def damage(root, size_at_least=8000):
    """Flip bytes in the middle of the biggest array file below `root`."""
    file = max((f for f in root.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    raw = bytearray(file.read_bytes())
    assert len(raw) > size_at_least
    for i in range(len(raw) // 2, len(raw) // 2 + 64):
        raw[i] ^= 0xFF
    file.write_bytes(bytes(raw))
