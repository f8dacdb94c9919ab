"""The tiny world: moving icons with sounds of their own, written as real clips and annotations."""
