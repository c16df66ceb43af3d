"""Tools that check shardfs: simulated devices, power cuts, reference models."""
