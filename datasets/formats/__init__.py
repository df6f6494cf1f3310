"""What readers of several data sets share: folders, lists, captions, manifests, MATLAB files, joined sets."""
