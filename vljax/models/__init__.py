"""The towers of Video-LLaMA and their composition; every size is a number in ``sizes``."""
