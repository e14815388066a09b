//! The flat map from sectors of a disk to sectors of its component devices.
