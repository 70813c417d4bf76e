# SPDX-License-Identifier: Apache-2.0
"""Error reconciliation, verification, key length and privacy amplification."""
