# SPDX-License-Identifier: Apache-2.0
"""What trainers read: hard negatives, teacher scores, and the files of other libraries."""
