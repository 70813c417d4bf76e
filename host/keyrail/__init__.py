# SPDX-License-Identifier: Apache-2.0
"""Keyrail: from detector clicks to secret keys."""
