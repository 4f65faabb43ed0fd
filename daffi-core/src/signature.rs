//! What a callback takes and gives back, as text for people and as a number for comparing.

/// The name of a type without its paths, as caller and callee compare it.
pub fn type_name<T: ?Sized>() -> String {
    std::any::type_name::<T>().to_owned()
}
