package admit_test

import (
	"errors"
	"fmt"
	"log/slog"

	"github.com/rhizome-tunnel/rhizome/tunnel/internal/admit"
)

// A connection is looked after as long as it is open.
func ExampleSet() {
	var admitted admit.Set
	leave := admitted.Enter(&admit.Admission{
		Check: func() error { return errors.New("its authority was removed") },
		Log:   slog.New(slog.DiscardHandler),
		End:   func() { fmt.Println("ended after half a minute") },
	})
	leave()
	fmt.Println(admit.Every, admit.Grace)
	// Output: 10s 30s
}
