"""Where qkvc meets other packages.  Each module imports its package itself."""
