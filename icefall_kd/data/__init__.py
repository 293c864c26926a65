"""Text, audio, the data gate, Shar and features: from manifests to model inputs."""
