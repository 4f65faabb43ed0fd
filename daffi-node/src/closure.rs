//! Closures as callbacks, for `Global::builder().callback(name, closure)`.

use std::{borrow::Cow, error::Error, panic::Location, sync::Arc};

use bytes::Bytes;
use daffi_core::{
    payload::Whole,
    signature::{Signature, WireType},
};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    Context,
    callback::{Callback, Function, Handler, Invocation},
    private::{NoArguments, arguments, boxed, chain, encode, failed},
};

/// A closure or function that can be a callback.
///
/// It takes up to 12 arguments, each owned and deserializable, preceded by `&Context` or `Context` if it
/// wants to know about its call.
///
/// `Marker` tells the compiler which arguments are meant; it is always inferred. The argument types must be
/// written out, as in `|a: i64, b: i64| a + b`.
#[diagnostic::on_unimplemented(
    message = "this cannot be a callback",
    label = "not a function of up to 12 owned arguments with `Deserialize`",
    note = "write the arguments' types, each owned: `|a: i64, text: String| …`; `&Context` or `Context` comes first",
    note = "a callback also has to be `Send + Sync + 'static`: write `move` in front of it"
)]
pub trait Closure<Marker>: Send + Sync + 'static {
    /// What it returns.
    type Output;

    /// The arguments it takes from the wire, as a tuple.
    #[doc(hidden)]
    type Arguments: DeserializeOwned;

    /// What it is told about its call.
    #[doc(hidden)]
    type Told: Told;

    #[doc(hidden)]
    fn call(&self, told: &Self::Told, arguments: Self::Arguments) -> Self::Output;

    #[doc(hidden)]
    fn parameters() -> Vec<WireType>;
}

/// What a closure may be told about its call: nothing, or its context.
#[doc(hidden)]
pub trait Told: Sized + Send + Sync + 'static {
    /// Returns a function that is told this much.
    fn function<T>(call: impl Fn(Invocation, Self) -> T + Send + Sync + 'static) -> Function<T>;
}

impl Told for () {
    fn function<T>(call: impl Fn(Invocation, ()) -> T + Send + Sync + 'static) -> Function<T> {
        Function::Plain(Arc::new(move |invocation| call(invocation, ())))
    }
}

impl Told for Context {
    fn function<T>(call: impl Fn(Invocation, Self) -> T + Send + Sync + 'static) -> Function<T> {
        Function::WithContext(Arc::new(call))
    }
}

impl Callback {
    /// Makes a callback from a closure.
    ///
    /// If the closure returns a `Result`, the result on offer is that `Result`, `Err` included; see
    /// [`try_closure`](Self::try_closure).
    #[track_caller]
    pub fn closure<M, F>(name: impl Into<Cow<'static, str>>, closure: F) -> Self
    where
        F: Closure<M, Output: Serialize>,
    {
        let handler = Handler::Sync(F::Told::function(move |invocation, told| {
            let result = closure.call(&told, arguments(&invocation)?);
            encode(invocation.codec, &result)
        }));
        Self::of_closure::<M, F, F::Output>(name.into(), handler)
    }

    /// Makes a callback from a closure that returns a `Result`, whose `Err` is the call's `Error::Remote`.
    ///
    /// The error travels as text, with its sources.
    #[track_caller]
    pub fn try_closure<M, F, T, E>(name: impl Into<Cow<'static, str>>, closure: F) -> Self
    where
        F: Closure<M, Output = Result<T, E>>,
        T: Serialize,
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        let handler = Handler::Sync(F::Told::function(move |invocation, told| {
            match closure.call(&told, arguments(&invocation)?) {
                Ok(value) => encode(invocation.codec, &value),
                Err(error) => Err(fault(error)),
            }
        }));
        Self::of_closure::<M, F, T>(name.into(), handler)
    }

    /// Makes a callback from a closure that returns a future.
    ///
    /// The future cannot borrow from the closure's `&Context`: take `Context` instead.
    #[track_caller]
    pub fn async_closure<M, F>(name: impl Into<Cow<'static, str>>, closure: F) -> Self
    where
        F: Closure<M, Output: Future<Output: Serialize> + Send>,
    {
        let closure = Arc::new(closure);
        let handler = Handler::Async(F::Told::function(move |invocation, told| {
            let closure = closure.clone();
            boxed(async move {
                // Before the call, so that arguments need not be `Send` unless the future keeps them.
                let arguments = arguments(&invocation)?;
                let result = closure.call(&told, arguments).await;
                encode(invocation.codec, &result)
            })
        }));
        Self::of_closure::<M, F, <F::Output as Future>::Output>(name.into(), handler)
    }

    /// Makes a callback from a closure that returns a future of a `Result`, as in
    /// [`try_closure`](Self::try_closure).
    #[track_caller]
    pub fn try_async_closure<M, F, T, E>(name: impl Into<Cow<'static, str>>, closure: F) -> Self
    where
        F: Closure<M, Output: Future<Output = Result<T, E>> + Send>,
        T: Serialize,
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        let closure = Arc::new(closure);
        let handler = Handler::Async(F::Told::function(move |invocation, told| {
            let closure = closure.clone();
            boxed(async move {
                let arguments = arguments(&invocation)?;
                match closure.call(&told, arguments).await {
                    Ok(value) => encode(invocation.codec, &value),
                    Err(error) => Err(fault(error)),
                }
            })
        }));
        Self::of_closure::<M, F, T>(name.into(), handler)
    }

    #[track_caller]
    fn of_closure<M, F: Closure<M>, R>(name: Cow<'static, str>, handler: Handler) -> Self {
        let parameters = F::parameters().into_iter().map(|parameter| ("", parameter));
        let signature = Signature::new(parameters, WireType::named::<R>());
        let place = Location::caller();
        Self::new(name, signature, handler).written_at(format!("{}:{}", place.file(), place.line()))
    }
}

fn fault<E: Into<Box<dyn Error + Send + Sync>>>(error: E) -> Box<daffi_core::fault::Fault> {
    let error = error.into();
    let mut fault = failed(&error, chain(error.source()), Bytes::new());
    fault.type_name = daffi_core::signature::type_name::<E>();
    fault
}

macro_rules! closures {
    (call ($($name:ident $argument:ident),*)) => {
        type Told = ();

        fn call(&self, (): &(), closures!(pattern $($argument),*): Self::Arguments) -> R {
            self($($argument),*)
        }
        closures!(parameters $($name),*);
    };
    (call |$context:ident| (@context $($name:ident $argument:ident),*)) => {
        type Told = Context;

        fn call(&self, $context: &Context, closures!(pattern $($argument),*): Self::Arguments) -> R {
            self($context, $($argument),*)
        }
        closures!(parameters $($name),*);
    };
    (call |$context:ident| (@clone $($name:ident $argument:ident),*)) => {
        type Told = Context;

        fn call(&self, $context: &Context, closures!(pattern $($argument),*): Self::Arguments) -> R {
            self($context.clone(), $($argument),*)
        }
        closures!(parameters $($name),*);
    };
    (tuple) => { NoArguments };
    (tuple $($name:ident),+) => { ($(Whole<$name>,)+) };
    (pattern) => { NoArguments };
    (pattern $($argument:ident),+) => { ($(Whole($argument),)+) };
    (parameters $($name:ident),*) => {
        fn parameters() -> Vec<WireType> {
            vec![$(WireType::traced::<$name>()),*]
        }
    };
    ($($name:ident $argument:ident),*) => {
        impl<F, R, $($name),*> Closure<fn($($name),*) -> R> for F
        where
            F: Fn($($name),*) -> R + Send + Sync + 'static,
            $($name: DeserializeOwned + 'static,)*
        {
            type Output = R;
            type Arguments = closures!(tuple $($name),*);

            closures!(call ($($name $argument),*));
        }

        impl<F, R, $($name),*> Closure<fn(&Context, $($name),*) -> R> for F
        where
            F: Fn(&Context, $($name),*) -> R + Send + Sync + 'static,
            $($name: DeserializeOwned + 'static,)*
        {
            type Output = R;
            type Arguments = closures!(tuple $($name),*);

            closures!(call |context| (@context $($name $argument),*));
        }

        impl<F, R, $($name),*> Closure<fn(Context, $($name),*) -> R> for F
        where
            F: Fn(Context, $($name),*) -> R + Send + Sync + 'static,
            $($name: DeserializeOwned + 'static,)*
        {
            type Output = R;
            type Arguments = closures!(tuple $($name),*);

            closures!(call |context| (@clone $($name $argument),*));
        }
    };
}

closures!();
closures!(A a);
closures!(A a, B b);
closures!(A a, B b, C c);
closures!(A a, B b, C c, D d);
closures!(A a, B b, C c, D d, E e);
closures!(A a, B b, C c, D d, E e, G g);
closures!(A a, B b, C c, D d, E e, G g, H h);
closures!(A a, B b, C c, D d, E e, G g, H h, I i);
closures!(A a, B b, C c, D d, E e, G g, H h, I i, J j);
closures!(A a, B b, C c, D d, E e, G g, H h, I i, J j, K k);
closures!(A a, B b, C c, D d, E e, G g, H h, I i, J j, K k, L l);
closures!(A a, B b, C c, D d, E e, G g, H h, I i, J j, K k, L l, M m);

#[cfg(test)]
mod tests {
    use daffi_core::{
        fault::{Fault, FaultKind},
        payload::Codec,
    };

    use super::*;

    fn call<T: DeserializeOwned>(callback: &Callback, arguments: &impl Serialize) -> Result<T, Box<Fault>> {
        let body = Codec::Bincode.encode(arguments).unwrap();
        let invocation = Invocation { body, codec: Codec::Bincode };
        let outcome = match callback.handler() {
            Handler::Sync(function) => function.call(invocation, Context::detached),
            Handler::Async(function) => {
                let future = function.call(invocation, Context::detached);
                tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
            }
        };
        outcome.map(|result| Codec::Bincode.decode(&result.into_bytes()).unwrap())
    }

    #[test]
    fn closures_take_what_they_name() {
        let offset = 100;
        let add = Callback::closure("add", move |a: i64, b: i64| a + b + offset);
        assert_eq!(call::<i64>(&add, &(1i64, 2i64)).unwrap(), 103);
        assert_eq!(add.signature().text(), "(i64, i64) -> i64");
        assert_eq!(add.name(), "add");
        assert!(add.source().starts_with("daffi-node/src/closure.rs:"), "{}", add.source());

        let none = Callback::closure("none", || "text".to_owned());
        assert_eq!(call::<String>(&none, &()).unwrap(), "text");
        assert_eq!(none.signature().text(), "() -> String");

        fn function(numbers: Vec<u8>) -> usize {
            numbers.len()
        }
        let function = Callback::closure("function", function);
        assert_eq!(call::<usize>(&function, &(vec![1u8, 2],)).unwrap(), 2);
    }

    #[test]
    fn the_context_is_injected() {
        let lent = Callback::closure("lent", |_: &Context, a: i64| a);
        let owned = Callback::closure("owned", |_: Context, a: i64| a);
        for callback in [lent, owned] {
            assert_eq!(callback.signature().text(), "(i64) -> i64");
            assert_eq!(call::<i64>(&callback, &(7i64,)).unwrap(), 7);
        }
        let alone = Callback::closure("alone", |_: &Context| 1u8);
        assert_eq!(call::<u8>(&alone, &()).unwrap(), 1);
    }

    #[test]
    fn errors_of_closures_travel_as_text() {
        let text = Callback::try_closure("text", |a: i64| if a > 0 { Ok(a) } else { Err("too small") });
        assert_eq!(call::<i64>(&text, &(1i64,)).unwrap(), 1);
        let fault = call::<i64>(&text, &(0i64,)).unwrap_err();
        assert_eq!((fault.kind, fault.message.as_str()), (FaultKind::Failed, "too small"));
        assert_eq!(text.signature().text(), "(i64) -> i64");

        let io = Callback::try_closure("io", || std::fs::read("/does/not/exist"));
        let fault = call::<Vec<u8>>(&io, &()).unwrap_err();
        assert_eq!(fault.type_name, "Error");
    }

    #[test]
    fn closures_with_futures_are_asynchronous() {
        let add = Callback::async_closure("add", |a: i64, b: i64| async move { a + b });
        assert!(matches!(add.handler(), Handler::Async(_)));
        assert_eq!(call::<i64>(&add, &(1i64, 2i64)).unwrap(), 3);
        assert_eq!(add.signature().text(), "(i64, i64) -> i64");

        let fails =
            Callback::try_async_closure("fails", |_: Context| async { Err::<(), _>(String::from("no")) });
        assert_eq!(call::<()>(&fails, &()).unwrap_err().message, "no");
        assert_eq!(fails.signature().text(), "() -> ()");
    }

    #[test]
    fn wrong_bytes_are_bad_arguments() {
        let one = Callback::closure("one", |a: String| a);
        assert_eq!(call::<String>(&one, &(5u64,)).unwrap_err().kind, FaultKind::BadArguments);
        let none = Callback::closure("none", || ());
        assert_eq!(call::<()>(&none, &(1u8,)).unwrap_err().kind, FaultKind::BadArguments);
    }
}
