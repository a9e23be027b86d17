"""Commands of the console script `qkvc`, each with what it computes, prints and takes: `add` puts it into the parser."""
