"""The built-in scorers, one a file. Each registers itself through the hook that anyone's plugin uses."""
