//! This controller holds what every controller of daffi holds.

daffi_conformance::conformance!(own_controller::OwnController);
