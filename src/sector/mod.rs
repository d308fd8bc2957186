//! sector
