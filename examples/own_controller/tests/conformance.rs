//! This controller passes what every daffi controller must pass.

daffi_conformance::conformance!(own_controller::OwnController);
