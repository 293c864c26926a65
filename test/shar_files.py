"""What an extraction left in a Shar folder."""

import hashlib


def digest(folder):
    """Return file name -> SHA-256 of all that is not the cuts or their audio."""
    return {
        p.name: hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.iterdir())
        if not p.name.startswith(("cuts.", "recording."))
    }
