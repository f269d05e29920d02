# A build of twenty seconds: 406 lines from ninja.
args:
import ../.. (
  args
  // {
    behaviour = {
      lines = 406;
      seconds = 20;
    };
  }
)
