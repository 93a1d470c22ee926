//! The tests that run the program as a whole.

mod pages;
mod shells;
mod terminal;
mod tools;
