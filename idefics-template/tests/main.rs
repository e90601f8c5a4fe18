//! Tests.
mod basic;
