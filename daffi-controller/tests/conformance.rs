//! The default controller holds what every controller of daffi holds.

daffi_conformance::conformance!(daffi_controller::DefaultController);
