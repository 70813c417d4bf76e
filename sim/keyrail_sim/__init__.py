# SPDX-License-Identifier: Apache-2.0
"""What stands for the world: photons, fibre, detectors and simulated boards."""
