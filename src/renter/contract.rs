//! PLACEHOLDER (dropped at the merge).
