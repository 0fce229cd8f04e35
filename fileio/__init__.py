"""Files that survive a kill, a full disk and hostile content: atomic writes, locks, and guarded
reading.

Every other package writes and reads files through this one; it imports none of them. It also holds
what all of them share: texts of messages and the lazy import of public names.
"""
