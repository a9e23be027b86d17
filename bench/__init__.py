"""Speed and error of qkvc beside its rivals; README.md says how."""
