"""Files that survive a kill, a full disk and hostile content: atomic writes, locks, and guarded reading.

Every other package writes and reads files through this one; it imports none of them.
"""
