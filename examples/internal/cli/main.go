package cli

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

// Main runs a program and exits. The context of run ends at the first SIGTERM
// or SIGINT, which asks for a drain, and [Abort] of it at the second.
func Main(program string, run func(ctx context.Context, args []string, stdout, stderr io.Writer) error) {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	ctx, stop := signalContext(signals)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(exitCode(program, err, os.Stderr))
}

// exitCode tells err, if it is one, and returns the exit code for it.
func exitCode(program string, err error, stderr io.Writer) int {
	var usage *UsageError
	switch {
	case err == nil || errors.Is(err, flag.ErrHelp):
		return 0
	case errors.As(err, &usage):
		fmt.Fprintf(stderr, "%s: %v\n%s -h shows all flags.\n", program, err, program)
		return 2
	}
	fmt.Fprintf(stderr, "%s: %v\n", program, err)
	return 1
}

// signalContext makes a context that ends at the first signal and whose Abort
// ends at the second. Stop ends both and the goroutine behind them.
func signalContext(signals <-chan os.Signal) (_ context.Context, stop func()) {
	abort, abortNow := context.WithCancelCause(context.Background())
	ctx, drain := context.WithCancelCause(WithAbort(context.Background(), abort))
	stopped, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for _, end := range []context.CancelCauseFunc{drain, abortNow} {
			select {
			case s := <-signals:
				end(fmt.Errorf("signal: %v", s))
			case <-stopped:
				return
			}
		}
	}()
	return ctx, func() {
		close(stopped)
		<-done
		drain(nil)
		abortNow(nil)
	}
}

type abortKey struct{}

// WithAbort gives a context for run an abort context, as Main does.
func WithAbort(ctx, abort context.Context) context.Context {
	return context.WithValue(ctx, abortKey{}, abort)
}

// Abort returns the context that ends when nobody wants to wait for the drain
// any longer. It never ends for a context that is not from Main or WithAbort.
func Abort(ctx context.Context) context.Context {
	if abort, ok := ctx.Value(abortKey{}).(context.Context); ok {
		return abort
	}
	return context.Background()
}
