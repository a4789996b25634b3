"""Developers' tools, run from a checkout: `make bench`, `bench-rollout`, `bench-intervals`, `gpu-check`. No part of the
package."""
