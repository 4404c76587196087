"""The kinds of defects, a file per clause; each is the forward pass of a module gone wrong in a marked line."""
