"""The rendered population: people drawn from attributes, written in the layouts of official datasets."""
